"""What `shmbus.futures` is made of: parcels, the words of the wire, a worker's process, and who looks after them."""
