"""Upload of an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from mvlm.errors import UserError, first_line


def push(folder: Path, repository: str, private: bool) -> str:
    """Create the repository if there is none, and commit all files of the folder to it.

    Args:
        repository: "OWNER/NAME", or "NAME" for one of the user who is logged in.
        private: make a new repository private; an existing one stays as it is.

    Returns:
        The URL of the commit.

    Raises:
        UserError: the hub refuses it, or cannot be reached; the folder stays.
    """
    api = HfApi(library_name="mvlm")
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="A model exported by mvlm", ignore_patterns=[".*"]
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"{repository} was not pushed ({reason}): log in with `hf auth login`, or set HF_TOKEN, and send {folder} "
            "again with `hf upload`."
        ) from None
    return str(commit.commit_url)
