"""Settings; the test that runs the project says where its databases are."""

import os

SECRET_KEY = "only for tests"
INSTALLED_APPS = ["sagakit.contrib.django", "shopsite"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SHOPSITE_DATABASE"]}}
USE_TZ = True
if "SHOPSITE_APP" in os.environ:
    SAGAKIT_APP = os.environ["SHOPSITE_APP"]
