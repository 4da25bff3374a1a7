import time, cProfile, pstats
from triptych.run.execute import execute
def test_a(prepared):
    for i in range(3):
        t=time.process_time(); run=prepared(f"seed={i+1}", path=f"a{i}"); t1=time.process_time()
        p=cProfile.Profile() if i==2 else None
        if 0: p.enable()
        execute(run)
        pass
        print("PREP", t1-t, "EXEC", time.process_time()-t1)
