"""The demo pool: a base and two specialists that train on the machine in about a minute and a half."""
