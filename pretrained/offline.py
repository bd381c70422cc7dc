"""Whether the hub answers, and what can be loaded without it."""

from pathlib import Path


def only_local(model: str) -> bool:
    """Whether a model, a folder or a name on the hub, has to be loaded from files that are here.

    Raises:
        FileNotFoundError: it has to, and there are none.
    """
    if Path(model).is_dir():
        return True
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    if hub_answers():
        return False
    try:
        snapshot_download(model, local_files_only=True)
    except HFValidationError as error:
        raise FileNotFoundError("there is no such folder") from error
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} can't be reached"
        raise FileNotFoundError(
            f"{why}, and it is neither a folder nor in {constants.HF_HUB_CACHE}"
        ) from error
    return True


def hub_answers() -> bool:
    """Whether Hugging Face's hub can be reached: one question of 5 s at most.

    The loaders ask for many files and try each for half a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # requests' or httpx's own families; HF_HUB_OFFLINE
        return False
    return True
