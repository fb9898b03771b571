"""What is known about icons' names: licences, styles, sizes, opposites, brands, and what single sets do differently."""

from __future__ import annotations

LICENCES = {"MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "Unlicense"}
"""SPDX identifiers; sets under any other licence are left out, including NC and ND."""

LOGO_CATEGORY = "Logos"
LOGO_SETS = {
    *("catppuccin", "devicon", "devicon-line", "devicon-original", "devicon-plain", "file-icons", "gcp", "k8s"),
    *("material-icon-theme", "skill-icons", "unjs", "vscode-icons"),
}
"""Sets of other categories whose icons are the marks of languages, tools and products."""

BRAND_CATEGORY = frozenset({"brand", "brands", "logo", "logos", "social media"})
"""A category within a set holds marks if its name has one of these as a word or between slashes."""

BRAND_WORDS = frozenset(
    """
    500px adobe adonisjs airbnb algolia alipay amazon amd amex android angular angularjs ansible appstore appwrite
    arduino asana atlassian aws azure baidu bandcamp behance bilibili binance bing bitbucket blackberry blender
    blogger bluesky bootstrap brand bytedance cakephp canva centos chrome chromecast chromium claude clickup
    cloudflare codepen codesandbox coinbase css3 debian deezer deno deviantart digg digitalocean dingtalk discord
    disqus django docker dogecoin dribbble dropbox drupal duckdb electron elixir ethereum etsy evernote expressjs
    facebook fedora figma firebase firefox fitbit flickr flipboard flutter foursquare freebsd gatsby github gitlab
    gitter gmail goodreads google googleplay gradle grafana graphql heroku houzz html5 hulu ikea imdb inkscape
    instacart instagram invision ionic java javascript jcb jetbrains jira joomla jquery kaggle kickstarter kotlin
    kubernetes laravel lastfm linkedin linux litecoin logo logos macos magento mastercard mastodon mcp mdx mediawiki
    meetup messenger meta microsoft mixcloud monero mongodb mysql netflix netlify nextcloud nextjs nginx nintendo
    nodejs npm nuget nuxt nvidia odnoklassniki onedrive onenote openai opera oracle patreon paypal periscope
    perplexity php pinterest playstation postgresql powerbi prisma python pytorch qq quora reactjs reddit redhat
    redis renren roblox ruby rust safari salesforce sass shopify sketchapp skype slack slideshare snapchat sonos
    soundcloud spotify squarespace stackexchange stackoverflow steam strava stumbleupon supabase svelte
    swagger symfony tailwind taobao telegram tensorflow terraform tesla tiktok tinder trello tripadvisor tumblr
    twitch twitter typescript typo3 uber ubuntu unity unsplash venmo vercel viber vimeo visa vite vkontakte vuejs
    wechat weibo whatsapp wikipedia windows wix woocommerce wordpress xamarin xbox xcode xing yahoo yandex yarn yelp
    youtube zhihu
    """.split()  # noqa: SIM905  it reads better
)
"""An icon whose name has one of these words is left out. Words that are also things (apple, spring, box) are not here:
such marks are left out only if their set puts them in a category of brands."""

STYLES = {
    "filled": "filled",
    "fill": "filled",
    "solid": "filled",
    "outline": "outline",
    "outlined": "outline",
    "stroke": "outline",
    "duotone": "duotone",
    "twotone": "duotone",
    "duo": "duotone",
    "boldduotone": "duotone",
    "rounded": "rounded",
    "round": "rounded",
    "sharp": "sharp",
    "bold": "bold",
    "thin": "thin",
    "light": "light",
    "line": "outline",
    "linear": "outline",
}
"""Words of style, and how captions say them."""

TRAILING_STYLES = {"filled", "fill", "solid", "outline", "outlined", "duotone", "twotone", "rounded"}
"""Words that are styles at the end of a name in any set; others are only if the set declares them or `SET_SUFFIXES`
says so, since a "traffic light" or "line" may be what is drawn."""

SET_SUFFIXES: dict[str, dict[str, str]] = {
    "clarity": {"line": "outline"},
    "hugeicons": {"bulk": "duotone"},
    "jam": {"f": "filled"},
    "majesticons": {"line": "outline"},
    "stash": {"light": "light"},
}
"""Styles at the end of the names of sets that do not declare them."""

SET_STYLES = {
    "bxs": "filled",
    "heroicons-outline": "outline",
    "heroicons-solid": "filled",
    "icon-park-outline": "outline",
    "icon-park-solid": "filled",
    "icon-park-twotone": "duotone",
    "material-symbols-light": "light",
    "uim": "duotone",
    "uis": "filled",
    "uit": "thin",
}
"""The style of all icons of a set."""

REGULAR_STYLES = {"fluent": "outline", "ph": "outline", "mynaui": "outline", "griddy-icons": "outline"}
"""What the word "regular" means in a set; elsewhere it says nothing."""

DROPPED_WORDS = {"bx", "bxs", "bxl", "alt", "variant", "24px", "20px", "1x1", "4x3"}
"""The maker's bookkeeping, which no picture shows."""

COUNTED_SETS = {"icon-park", "icon-park-outline", "icon-park-solid", "icon-park-twotone"}
COUNTERS = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
"""Last words that number the variants of an icon in these sets."""

FAMILIES = (("ic", "material-symbols", "material-symbols-light", "mdi"),)
"""Sets of different authors that redraw the same designs, so that no curve is equal."""

OPPOSITES = (
    *(("left", "right"), ("up", "down"), ("top", "bottom"), ("plus", "minus"), ("add", "remove"), ("on", "off")),
    *(("in", "out"), ("vertical", "horizontal"), ("open", "closed"), ("open", "close"), ("opened", "closed")),
    *(("lock", "unlock"), ("locked", "unlocked"), ("forward", "backward"), ("forward", "back"), ("next", "previous")),
    *(("start", "end"), ("north", "south"), ("east", "west"), ("show", "hide"), ("expand", "collapse")),
    *(("maximize", "minimize"), ("full", "empty"), ("high", "low"), ("upload", "download"), ("import", "export")),
    *(("ascending", "descending"), ("asc", "desc"), ("male", "female"), ("man", "woman"), ("day", "night")),
    *(("undo", "redo"), ("happy", "sad"), ("more", "less"), ("first", "last"), ("inside", "outside")),
    *(("above", "below"), ("before", "after"), ("clockwise", "counterclockwise"), ("increase", "decrease")),
    *(("enabled", "disabled"), ("connected", "disconnected"), ("upward", "downward"), ("sunrise", "sunset")),
)
"""Words whose exchange makes a name that is wrong for the picture."""

STYLE_OPPOSITES = (("filled", "outline"), ("rounded", "sharp"), ("thin", "bold"), ("light", "bold"))

OPPOSITE_WORDS = frozenset(word for pair in OPPOSITES for word in pair)
