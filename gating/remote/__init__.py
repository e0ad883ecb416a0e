"""The same traces on an NDIF server (ndif.us, or one of your own), without weights here.

connection: everything that can be checked before a job is sent, and then a backend whose traces run there; preflight:
what is checked; wire: the server's HTTP interface; jobs: one trace's way there and back; results and expected: what may
come back; ledger: which jobs were sent, so that a killed run collects them; address: where the server is and which key
opens it.
"""
