"""Define the colours that SAM's image encoder expects, on the 0-255 scale (Kirillov et al., "Segment Anything")."""

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)
