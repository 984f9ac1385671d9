"""Recognise a finished slide by its files, to save the seconds of loading a network that has nothing to do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nucsam_monai.io import write_json
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.readers import fingerprint
from nucsam_monai.wsi.run import Method, SlideOptions, SlideResult, request_of, result_of


def remember(path: Path, output_dir: Path, source: Any, options: SlideOptions, method: Method) -> None:
    """Note what a finished slide was asked for, and the files that its network came from.

    Args:
        path: path of the slide.
        output_dir: folder of the run.
        source: dataclass that names the network.
        options: options of the slide.
        method: the network that it named.
    """
    files = {str(file.resolve()): sha256_of_file(file) for file in method.files}
    write_json(_note(path, output_dir), _asked(path, source, options, files))


def known_result(path: Path, output_dir: Path, source: Any, options: SlideOptions) -> SlideResult | None:
    """Return the result of a slide that is finished for exactly this; None says that it has to be looked at closely."""
    try:
        note = json.loads(_note(path, output_dir).read_text(encoding="utf-8"))
        files = {file: sha256_of_file(file) for file in note["files"]}
        same = _asked(path, source, options, files) == note
        journal = Journal(output_dir / path.stem)
        return result_of(journal) if same and journal.is_finished() else None
    except (OSError, ValueError, KeyError):
        return None


def _note(path: Path, output_dir: Path) -> Path:
    return output_dir / path.stem / "asked.json"


def _asked(path: Path, source: Any, options: SlideOptions, files: dict[str, str]) -> dict[str, Any]:
    asked = {"slide": fingerprint(path), "source": asdict(source), "options": request_of(options)}
    return dict(json.loads(json.dumps({**asked, "files": files}, default=str)))
