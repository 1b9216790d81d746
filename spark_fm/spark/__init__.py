"""All that depends on the Spark session, Classic or Connect: cluster, broadcasts, collecting.

The only room that may use what Classic alone has, with a way for Connect beside it. Imports
``learner``; ``training``, ``scoring``, ``datasource``, ``ml`` and ``cli`` import it.
"""
