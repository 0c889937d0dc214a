"""The algorithm: V-trace, losses, networks, environments and the codec. No sockets, threads, files or clocks in here."""
