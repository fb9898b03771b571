"""Icons of the npm package `@iconify/json`: which are taken, what they are called, how they are drawn and divided."""
