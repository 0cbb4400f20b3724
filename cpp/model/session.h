// One running sequence: its plan, its position, its keys and values.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>

#include "model/kv_cache.h"
#include "model/plan.h"

namespace slimformer::model {

class Session {
 public:
  // `capacity` is the most positions it may hold, the limit if not given: that of the model, or, of
  // a session with a window whose model counts positions by rotation, that of float32.
  // Error(config) where the capacity is below 1 or above the limit, or the window does not fit the
  // model.
  Session(std::shared_ptr<const Plan> plan, ops::KvType type, std::optional<int> capacity,
          std::optional<ops::KvWindow> window);

  // Holds the session for one call. Error(data) where another thread holds it already: a sequence
  // cannot go on in two ways at once, and waiting would hide the mistake.
  class Hold {
   public:
    explicit Hold(Session& session);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    Session& session_;
  };

  const Plan& plan() const { return *plan_; }
  ops::KvType kv_type() const { return kv_type_; }
  int position() const { return position_; }
  int capacity() const { return capacity_; }
  const std::optional<ops::KvWindow>& window() const { return cache_.window(); }
  std::size_t KvBytes();

  // A session that goes on from the same position by itself; memory is shared until either writes.
  std::unique_ptr<Session> Fork();

  // Goes back to an earlier position. Error(data) for a later one, and where what it sees has left
  // the window and was let go.
  void Rewind(int position);

  // For whoever holds the session.
  KvCache& cache() { return cache_; }
  void Advance(int tokens) {
    position_ += tokens;
    cache_.Release(static_cast<std::size_t>(position_));
  }

 private:
  Session(const Session& other);

  std::shared_ptr<const Plan> plan_;
  ops::KvType kv_type_;
  KvCache cache_;
  int capacity_;
  std::atomic<int> position_ = 0;
  std::atomic_flag held_;
};

}  // namespace slimformer::model
