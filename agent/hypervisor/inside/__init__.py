"""What runs inside an enclosure: standard library only, started by `python -I -S`, up in milliseconds."""
