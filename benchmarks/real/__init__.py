"""Every ruleset on trained networks that come with packages of the Python registry: ``make real``."""
