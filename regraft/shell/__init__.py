"""How a command runs: environment, signals, one-line errors with exit codes, tables and --json.

`process.run_app` is the process and `command.run_command` one command in it. Exit codes: 0 done;
2 the user's input or arguments are wrong; 1 anything else; 128 + signal when interrupted (130
SIGINT, 143 SIGTERM, 129 SIGHUP). Every failure is one line on stderr.
"""
