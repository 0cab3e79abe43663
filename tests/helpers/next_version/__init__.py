"""What a version after this one might bring, for tests/helpers/installs.py."""
