"""The media room: what a request brings as pictures, clips and documents, made ready for the model
in processes of their own.

`room` is what the server calls. `shapes` finds the media in messages, `options` checks what is
asked of them, `sources` gets their bytes (`door` is the only file that opens connections, `folder`
the only one that opens files), `pool` hands them to the processes that decode.
"""
