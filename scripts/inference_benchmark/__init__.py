"""Parts of the benchmark of whole images, from the file that is read to the files that are written."""
