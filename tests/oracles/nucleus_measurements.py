"""Slow, obvious measurements of a label map: one nucleus and one pixel at a time."""

import numpy as np


def measure_nuclei(instances: np.ndarray) -> list[dict[str, float]]:
    pixels: dict[int, list[tuple[int, int]]] = {}
    for y in range(instances.shape[0]):
        for x in range(instances.shape[1]):
            if instances[y, x] != 0:
                pixels.setdefault(int(instances[y, x]), []).append((x, y))
    rows = []
    for nucleus_id in sorted(pixels):
        xs = [x for x, _ in pixels[nucleus_id]]
        ys = [y for _, y in pixels[nucleus_id]]
        rows.append(
            {
                "id": nucleus_id,
                "centroid_x_px": sum(xs) / len(xs),
                "centroid_y_px": sum(ys) / len(ys),
                "box_x_min_px": min(xs),
                "box_y_min_px": min(ys),
                "box_x_max_px": max(xs) + 1,
                "box_y_max_px": max(ys) + 1,
                "area_px": len(xs),
            }
        )
    return rows
