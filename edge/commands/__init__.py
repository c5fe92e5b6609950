"""The sub-commands of `beltline` that live on the box: one module each, thin over the rooms."""
