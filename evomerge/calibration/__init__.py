"""Statistics of data, once per source: runs models over calibration items and keeps what methods read."""
