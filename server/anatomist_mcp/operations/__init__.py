"""Operations that only a server has: jobs, and calling any technique by name. Same face as `anatomist.operations`,

but `run(app, arguments, report)` is asynchronous and gets the App.
"""
