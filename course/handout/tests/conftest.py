"""Short reports: what is wrong, and the line that raised it."""


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"
