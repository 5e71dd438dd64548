"""The console commands, one module each; they bind the rooms together and no room imports them."""
