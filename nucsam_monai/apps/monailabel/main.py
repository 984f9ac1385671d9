"""What ``monailabel start_server --app nucsam_monai/apps/monailabel`` loads."""

from nucsam_monai.apps.monailabel.application import NucleiLabelApp

__all__ = ["NucleiLabelApp"]
