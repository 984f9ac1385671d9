"""Read images and label maps, and write predictions: label TIFF, GeoJSON, CSV tables and overlays."""

from nucsam_monai.io.geojson import nuclei_features, nuclei_polygons, write_geojson
from nucsam_monai.io.images import (
    MAX_PIXELS,
    SUPPORTED_SUFFIXES,
    IntensityRange,
    check_intensity_range,
    check_memory_for_whole,
    find_images,
    output_stems,
    read_image,
    read_image_to_segment,
    to_rgb_uint8,
    whole_image_px,
)
from nucsam_monai.io.label_maps import (
    LABEL_MAP_SUFFIXES,
    decode_label_channels,
    decode_label_map,
    read_class_map,
    read_label_map,
    write_label_image,
)
from nucsam_monai.io.overlay import (
    OVERLAY_PX,
    comparison_overlay,
    draw_prediction,
    encode_png,
    overlay_image,
    write_png,
)
from nucsam_monai.io.points_file import Point, points_by_id, read_points, require_inside
from nucsam_monai.io.predictions import (
    nuclei_rows,
    write_evaluation,
    write_json,
    write_prediction,
    write_table,
)

__all__ = [
    "LABEL_MAP_SUFFIXES",
    "MAX_PIXELS",
    "OVERLAY_PX",
    "SUPPORTED_SUFFIXES",
    "IntensityRange",
    "Point",
    "check_intensity_range",
    "check_memory_for_whole",
    "comparison_overlay",
    "decode_label_channels",
    "decode_label_map",
    "draw_prediction",
    "encode_png",
    "find_images",
    "nuclei_features",
    "nuclei_polygons",
    "nuclei_rows",
    "output_stems",
    "overlay_image",
    "points_by_id",
    "read_class_map",
    "read_image",
    "read_image_to_segment",
    "read_label_map",
    "read_points",
    "require_inside",
    "to_rgb_uint8",
    "whole_image_px",
    "write_evaluation",
    "write_geojson",
    "write_json",
    "write_label_image",
    "write_png",
    "write_prediction",
    "write_table",
]
