"""Frozen trunks beside the default one: pictures to maps that methods are fitted on."""
