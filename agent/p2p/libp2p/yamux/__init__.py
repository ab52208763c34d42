"""`/yamux/1.0.0`: the frames and the session are pure code, `muxer` alone does input and output."""
