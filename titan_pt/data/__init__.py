"""Documents, streams, packed rows: nested iterators, each with a small state that a resume puts back.

    [[data.sources]]  -> kind of source -> documents         sources/registry.py, documents.py, opening.py
       no state: a fixed, numbered set with a fingerprint; every kind is opened by a module of its own
         sources/arrow.py (local files), named.py, prepared.py (token shards), remote/sources.py, builtin/sources.py
          |
          v
    order: which document of a source comes next              stream/order.py, remote/block_order.py
       state: draws so far; by row group also block, row, deferred blocks (BlockOrderState)
          |  place -> number, text
          v
    stream: one of S logical readers of the whole mixture     stream/stream.py, mixture.py, encoding.py
       draws documents, leaves out the other side of the held-out split, tokenises, decides whose turn it is
       state: StreamState in stream/state.py: counts by source, orders, documents under way (PieceState), token hash
          |  pieces of documents
          v
    rows: seq_len + 1 tokens                                  stream/packing.py, row.py
       no state of its own: the documents under way are the stream's
          |  PackedRow
          v
    steps: row r of a global batch is from stream r mod S     stream/steps.py, or workers.py (data.num_workers > 0)
       state: ResumePoint of each stream: behind the batch, and before its last row
          |  StepRows
          v
    batch: micro-batches of tensors                           stream/batch.py
          |  StepBatch, with the ResumePoints behind it
          v
    loader: prepared ahead on a thread, waited for together   stream/prefetch.py, loader.py
       state: the ResumePoints of the last batch passed to `commit`, in data.json of a checkpoint

On a resume `DataLoader.load_state_dict` gives every stream its point: the stream goes back before its last row, reads
its documents under way again, makes that row once more and compares the hash of all tokens (`Stream.resume`).

What a run on local files does not use is not imported: `remote/`, `builtin/`, token shards, workers, records for
fine-tuning, `synthetic.py` (dry run), `overlap.py` (tools).
"""
