"""Tools of a Model Context Protocol server as a world (`pip install 'polymath[mcp]'`)."""
