"""Networks that answer for every pixel, one file each, written from their papers."""
