"""The two engines that every process is one of, and the bus that they stand on."""
