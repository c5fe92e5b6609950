"""`beltline bench`: methods side by side on labelled data sets."""
