"""Files that operating systems leave behind in folders and archives."""

_JUNK_NAMES = {".ds_store", "thumbs.db", "desktop.ini"}


def is_junk(name: str) -> bool:
    """Tell whether a path with forward slashes is such a leftover.

    Example:
        >>> is_junk("__MACOSX/stage1_train/._a.png"), is_junk("images/a.png")
        (True, False)
    """
    parts = name.lower().split("/")
    return "__macosx" in parts or parts[-1] in _JUNK_NAMES or parts[-1].startswith("._")
