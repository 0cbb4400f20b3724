#include "model/session.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace slimformer::model {
namespace {

// Angles are float32 products of positions, which are whole up to here.
constexpr int kMostRotated = 1 << 24;

void CheckWindow(const ops::KvWindow& window, const ModelSpec& spec) {
  const auto limit = static_cast<std::size_t>(spec.max_positions);
  if (window.positions < 1 || window.positions > limit || window.sinks > limit - window.positions) {
    throw Error(ErrorKind::config,
                "window: expected 1 position or more, and with the sinks at most the model's limit "
                "of " +
                    std::to_string(limit) + ", found " + std::to_string(window.positions) +
                    " and " + std::to_string(window.sinks) + " sinks");
  }
}

}  // namespace

Session::Session(std::shared_ptr<const Plan> plan, ops::KvType type, std::optional<int> capacity,
                 std::optional<ops::KvWindow> window)
    : plan_(std::move(plan)), kv_type_(type), cache_(*plan_, type, window) {
  const ModelSpec& spec = plan_->weights().spec;
  if (window) CheckWindow(*window, spec);
  const int limit = window && !spec.learned_positions ? kMostRotated : spec.max_positions;
  capacity_ = capacity.value_or(limit);
  if (capacity_ < 1 || capacity_ > limit) {
    throw Error(ErrorKind::config, "capacity: expected 1 to the limit of " + std::to_string(limit) +
                                       " positions, found " + std::to_string(capacity_));
  }
}

Session::Session(const Session& other)
    : plan_(other.plan_),
      kv_type_(other.kv_type_),
      cache_(other.cache_),
      capacity_(other.capacity_),
      position_(other.position_.load()) {}

Session::Hold::Hold(Session& session) : session_(session) {
  if (session_.held_.test_and_set(std::memory_order_acquire)) {
    throw Error(ErrorKind::data,
                "a session is already in use by another call; fork it to use it from two threads");
  }
}

Session::Hold::~Hold() { session_.held_.clear(std::memory_order_release); }

std::size_t Session::KvBytes() {
  const Hold hold(*this);
  return cache_.bytes();
}

std::unique_ptr<Session> Session::Fork() {
  const Hold hold(*this);
  return std::unique_ptr<Session>(new Session(*this));
}

void Session::Rewind(int position) {
  const Hold hold(*this);
  if (position < 0 || position > position_) {
    throw Error(ErrorKind::data, "rewind: expected a position from 0 to " +
                                     std::to_string(position_) + ", found " +
                                     std::to_string(position));
  }
  if (!cache_.Holds(static_cast<std::size_t>(position))) {
    throw Error(ErrorKind::data,
                "rewind: what position " + std::to_string(position) +
                    " sees has left the session's window; fork it before it goes on");
  }
  cache_.Truncate(static_cast<std::size_t>(position));
  position_ = position;
}

}  // namespace slimformer::model
