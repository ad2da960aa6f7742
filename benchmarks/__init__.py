"""Speed and memory beside other libraries, measured in one run: `python -m benchmarks`, or `make bench`."""
