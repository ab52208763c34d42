"""Inside the guests: sessions, files and connections over the guest channel, a virtio-serial port of each VM."""
