"""The media room: what a request brings as pictures, clips and documents, made ready for the model
in processes of their own.

`room` is what the server calls. `shapes` finds the media in messages, `bounds` holds what is asked
of them against the limits, `source_reader` gets their bytes (`door` is the only file that opens
connections, `folder` the only one that opens files), `pool` hands them to the processes that
decode.
"""
