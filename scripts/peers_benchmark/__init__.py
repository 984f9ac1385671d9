"""Parts of the benchmark of other systems: what each of them is, and the process that runs one of them."""
