"""How the elements of tensors travel between a client and a server of inference.v1.TensorService.

Every lane moves a `Parcel` in each direction. ``lane`` names the lanes and chooses among them. ``inline``, and
``chunks`` with its other end ``assembly``, need nothing but the call itself. No socket and no clock here: clients and
servicers carry the bytes.
"""
