"""Start the application for ``monailabel start_server --app nucsam_monai/apps/monailabel``."""

from nucsam_monai.apps.monailabel.application import NucleiLabelApp

__all__ = ["NucleiLabelApp"]
