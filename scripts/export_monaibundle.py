r"""Copy a bundle with its weights to where MONAI Label's own app ``monaibundle`` serves it.

Example:
    monailabel apps --download --name monaibundle --output apps
    python scripts/export_monaibundle.py unsam --checkpoint output/mine/model.safetensors \
        --output_dir apps/monaibundle/model
    monailabel start_server --app apps/monaibundle --studies <folder> --conf models unsam --conf zoo_source local \
        --conf sam2 false --host 127.0.0.1
"""

import sys
from pathlib import Path

from nucsam_monai.apps.command_line import run_command


def main(bundle: str, checkpoint: str, output_dir: str, **settings: bool | int | float | str | None) -> None:
    """Copy a bundle and its weights for MONAI Label's own app.

    Args:
        bundle: name of the bundle.
        checkpoint: weights file, or folder with the two files of PromptNucSeg.
        output_dir: folder ``model`` of the app.
        settings: options that the weights were trained with, such as ``--sam_variant vit_b``.
    """
    from nucsam_monai.apps.monailabel.settings import find_bundle
    from nucsam_monai.apps.monailabel.stock_app import export_for_stock_app
    from nucsam_monai.segmenter import Segmenter

    export_for_stock_app(
        Segmenter(find_bundle(bundle), checkpoint, settings=settings), Path(output_dir) / bundle
    )


if __name__ == "__main__":
    sys.exit(run_command(main, name="export"))
