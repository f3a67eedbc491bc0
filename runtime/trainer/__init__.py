"""torchtitan, subclassed. Importing the package prepares torchtitan's import, so no module in it need take care."""

from . import bootstrap as bootstrap
