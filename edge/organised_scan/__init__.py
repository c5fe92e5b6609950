"""Front end `organised_scan`, version 1: one idea a module, put together in `edge.organised_scan.front_end`."""
