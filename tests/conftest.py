"""Settings that hold for every test."""

import os

from hypothesis import settings

# Examples take longer on a busy machine: time is no criterion. In continuous integration they don't vary.
settings.register_profile("nucsam", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("nucsam")
