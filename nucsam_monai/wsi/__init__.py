"""Segment whole slides: read them, divide them into shards, and merge the nuclei of the shards.

Nothing here loads torch; the network is passed as a :class:`~nucsam_monai.wsi.shards.RegionSegmenter`.
"""

from nucsam_monai.wsi.cohort import segment_cohort, segment_slides
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.readers import SlideError, SlideMetadataError, SlideReader, open_slide
from nucsam_monai.wsi.run import Method, SlideOptions, SlideResult, merge_slide, segment_slide

__all__ = [
    "Journal",
    "Method",
    "SlideError",
    "SlideMetadataError",
    "SlideOptions",
    "SlideReader",
    "SlideResult",
    "merge_slide",
    "open_slide",
    "segment_cohort",
    "segment_slide",
    "segment_slides",
]
