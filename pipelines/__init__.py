"""The command line and everything that joins the two stages."""
