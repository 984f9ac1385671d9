"""Serve the bundles with MONAI Label: whole images, slides, clicks, fine-tuning and active learning over HTTP.

Only ``main``, ``application`` and ``datastore`` import MONAI Label; all else works without it.
"""
