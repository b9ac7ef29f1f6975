"""The version of the distribution. One place; the build reads it."""

VERSION = "0.1.0"
