# SPDX-License-Identifier: Apache-2.0
"""Networks of containers: bridges, addresses, published ports, names. Pure parts come first.

Everything is done by netlink (`_netlink`, which alone knows pyroute2 and is imported when a network
is asked for), in the network namespace of the calling thread: the *host* of what follows. Resources
that the kernel gives back by itself are preferred: a veth goes with the container's namespace, an
address and the right to be there are file locks of the process that has the container. What cannot
be tied so (elements of nftables, files) bears the container's id, and is collected by whoever
changes the network next, see `_state`.
"""
