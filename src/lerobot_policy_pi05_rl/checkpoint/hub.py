"""The card that the Hub shows of a repository of checkpoints: the newest one's."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from ..cards.text import CARD, is_untouched
from ..errors import typed_line

logger = logging.getLogger(__name__)


def show_card(checkpoint: Path, repo_id: str) -> None:
    """Put an uploaded checkpoint's card where the Hub looks for one, the top of the repository.

    A card there that somebody has written or edited stays. A failure is one warning: each checkpoint has its card
    with it, and the next one is another attempt."""
    card = checkpoint / PRETRAINED_MODEL_DIR / CARD
    if not card.is_file():
        return
    api = HfApi()
    try:
        there = _card_of(api, repo_id)
        if there is not None and not is_untouched(there):
            logger.info("The %s of %s was edited and stays as it is", CARD, repo_id)
            return
        api.upload_file(
            path_or_fileobj=card,
            path_in_repo=CARD,
            repo_id=repo_id,
            repo_type="model",
            commit_message=f"card of checkpoint {checkpoint.name}",
        )
    except Exception as error:  # as saver.upload
        logger.warning("The card of %s was not updated (%s); the run goes on", repo_id, typed_line(error))


def _card_of(api: HfApi, repo_id: str) -> str | None:
    """The card at the top of the repository; None: it has none."""
    try:
        path = api.hf_hub_download(repo_id=repo_id, filename=CARD, repo_type="model")
    except RemoteEntryNotFoundError:
        return None
    return Path(path).read_bytes().decode(errors="replace")
