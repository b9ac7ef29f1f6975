"""How the elements of tensors travel between a client and a server of inference.v1.TensorService.

Every lane moves a `Parcel` in each direction. ``lane`` names the lanes. ``inline``, and ``chunks`` with its other end
``assembly``, need nothing but the call itself: clients and servicers carry the bytes. The others are negotiated:
``shared`` over ``shm``, by memory of both processes, and ``direct`` over ``socket``, by a connection that ``dialing``
makes. ``placing`` tells in messages what lies where in them, and ``granted`` is what a server has granted to whom.
"""
